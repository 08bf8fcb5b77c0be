"""The codec on a GPU: the same bytes as the reference.

integers, channels  values to integers;  planes, parts  integers to a section;  encode  all of it
tile      any tile to registers;  unpack  a few tokens of one;  whole  tiles to K and V
rotation  both ways;  target  switches of a device;  operators  for torch.compile
blocks, launch  what is launched, and with which buffers
"""
