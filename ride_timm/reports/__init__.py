"""What the report of a run is made of: measuring, figures, page."""
