"""What a command does after its flags are read. Imports the story and cifarnet."""
