"""The codec on a GPU: the same bytes as the reference.

integers  values to integers;  planes, parts  integers to a section;  encode  a whole section
tile      any tile to registers;  unpack  tiles to K and V;  rotation  both ways
blocks, launch  what is launched, and with which buffers;  target  switches of a device
"""
