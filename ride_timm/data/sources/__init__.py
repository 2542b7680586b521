"""Where images come from: folders, lists, torchvision, Hugging Face, shards."""
