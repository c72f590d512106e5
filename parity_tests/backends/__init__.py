"""How the packages of each backend are opened, looked into and held against the reference."""
