"""Stable Diffusion's x4 upscaler.

A UNet that sees the small image, with noise on it, beside latents of its height and width, and is given the noise's
level as a class label; its VAE decodes to four times that. Rombach et al. 2022 (arXiv:2112.10752), section 4.5; Ho et
al. 2021 (arXiv:2106.15282), section 4.2.
"""

from sdjax.families.family import Family
from sdjax.families.stable_diffusion import NETWORKS, TEXT_NETWORKS, encode_text, predict

X4_UPSCALER = Family(
    "Stable Diffusion x4 upscaler", NETWORKS, TEXT_NETWORKS, encode_text, predict, conditioned_on="image", upscales=4
)
