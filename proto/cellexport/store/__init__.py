"""What the server keeps in a store that several servers share."""
