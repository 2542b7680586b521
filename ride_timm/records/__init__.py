"""What is read from files: it is compared with what is allowed before it is used."""
