"""A server for trained models, in the format of OpenAI's completions."""
