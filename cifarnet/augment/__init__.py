"""Random changes of training images; imports core and images."""
