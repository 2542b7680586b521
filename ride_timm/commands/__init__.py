"""The subcommands of `ride-timm`, one module each; nothing else knows argparse."""
