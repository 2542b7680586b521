"""One thin module a subcommand of `ride-timm`."""
