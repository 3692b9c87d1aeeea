"""Evaluation of trained models: held-out likelihood, multiple choice, exact match, and EleutherAI's harness."""
