"""Energy-based models of images, trained by denoising score matching over any noise schedule."""
