"""Energy-based models of images, trained by denoising score matching over any noise schedule."""
__version__ = "0.1.0"
