"""What others have written, unchanged: their clients, their libraries, their loops."""
