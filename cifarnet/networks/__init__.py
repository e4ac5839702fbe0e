"""Convolution blocks and networks; imports torch alone."""
