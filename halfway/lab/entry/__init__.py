"""What every command begins and ends with: its flags, and a mistake as one line."""
