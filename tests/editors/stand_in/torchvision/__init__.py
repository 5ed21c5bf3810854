"""What transformers' processors use of torchvision, in plain torch, for tests on machines that lack the package.

It stands on the path of a process of its own only (tests/editors/test_editors.py): elsewhere torchvision is missing, as
it is on a machine without a GPU.
"""

__version__ = "0.28.0"
