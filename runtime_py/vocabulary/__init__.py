"""What a vocabulary's file leaves out."""
