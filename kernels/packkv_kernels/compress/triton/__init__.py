"""The codec on a GPU: the same bytes as the reference.

integers, channels  values to integers;  planes, parts  integers to a section;  encode  all of it
tile      any tile to registers;  unpack  tiles to K and V;  rotation  both ways
blocks, launch  what is launched, and with which buffers;  target  switches of a device
"""
