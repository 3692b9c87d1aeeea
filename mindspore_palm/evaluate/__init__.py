"""How good a model is: held-out likelihood of documents, multiple choice, exact match, and EleutherAI's harness."""
