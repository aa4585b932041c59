"""How tensors lie in memory: strided views, images in blocks of channels, and aligned buffers."""
