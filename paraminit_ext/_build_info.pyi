# What setup.py writes beside the binary; the file itself is no part of the sources.
TORCH_VERSION: str
CUDA: str
ARCH: str
COMPILER: str
CXX_FLAGS: str
