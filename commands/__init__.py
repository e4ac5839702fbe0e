"""What a command does once its flags are read. Imports the story and cifarnet."""
