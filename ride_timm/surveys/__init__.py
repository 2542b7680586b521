"""What `ride-timm data` is made of: survey, text, plot."""
