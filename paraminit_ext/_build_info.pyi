# setup.py writes this module next to the compiled extension; it is not part of the sources.
TORCH_VERSION: str
CUDA: str
ARCH: str
COMPILER: str
CXX_FLAGS: str
