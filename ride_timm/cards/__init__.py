"""What model cards are made of: text, figures and the results they come from."""
