"""What `ride-timm publish` is made of: the folder that goes up, and the upload."""
