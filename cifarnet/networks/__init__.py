"""Convolution blocks and networks. Imports torch only."""
