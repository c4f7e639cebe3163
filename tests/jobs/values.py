"""Values of a job's fields, and what they need beside them, that tests share."""

FINGERPRINT = {"batch_size": 4, "device_kind": "cpu", "dtype": "float32", "jaxlib": "0", "sdjax": "0"}
# A value of each field that is not its default.
OTHER = {
    "prompt": "a pear",
    "negative_prompt": "blurry",
    "prompt_syntax": "compel",
    "emphasis": "no_norm",
    "prompt_problems": "accept",
    "clip_skip": 1,
    "seed": 7,
    "noise_source": "torch",
    "variation_seed": 3,
    "variation_strength": 0.5,
    "seed_resize_from_width": 32,
    "seed_resize_from_height": 32,
    "width": 64,
    "height": 64,
    "steps": 21,
    "sampler": "euler",
    "schedule": "karras",
    "timestep_spacing": "trailing",
    "eta": 0.5,
    "s_churn": 1.0,
    "s_tmin": 0.1,
    "s_tmax": 10.0,
    "s_noise": 1.1,
    "solver_order": 3,
    "multistep_start": "k_diffusion",
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
    "guidance_start": 0.1,
    "guidance_end": 0.9,
    "dynamic_thresholding_ratio": 0.99,
    "sample_max_value": 2.0,
    "loras": "ink:0.8",
    "hypernetworks": "oil:1",
    "image": "a.png",
    "strength": 0.5,
    "resize_mode": "crop",
    "mask_image": "b.png",
    "mask_blur": 4.0,
    "invert_mask": True,
    "binarize_mask": True,
    "inpaint_fill": "noise",
    "only_masked": True,
    "only_masked_padding": 8,
    "keep_unmasked": True,
    "depth_image": "c.png",
    "controlnets": "edges:0.5",
    "control_image": "d.png",
    "control_preprocessor": "canny",
    "guess_mode": True,
    "hires_scale": 2.0,
    "hires_upscaler": "latent_bicubic",
    "hires_steps": 9,
    "hires_strength": 0.5,
    "upscaler": "x4",
    "upscale_by": 2.0,
    "upscaler_steps": 5,
    "upscaler_guidance_scale": 3.0,
    "upscaler_noise_level": 30,
    "class_label": 2,
    "classifier_scale": 1.0,
    "classifier_label": 4,
    "preview_every": 5,
}
# What a field needs beside it.
TOGETHER = {
    "variation_strength": {"variation_seed": 3},
    "seed_resize_from_width": {"seed_resize_from_height": 64},
    "seed_resize_from_height": {"seed_resize_from_width": 64},
    "classifier_scale": {"classifier_label": 5},
    "strength": {"image": "e.png"},
    "mask_image": {"image": "e.png"},
    **{
        name: {"image": "e.png", "mask_image": "f.png"}
        for name in ("mask_blur", "invert_mask", "inpaint_fill", "only_masked", "keep_unmasked", "binarize_mask")
    },
    "only_masked_padding": {"image": "e.png", "mask_image": "f.png", "only_masked": True},
    "resize_mode": {"image": "e.png"},
    "controlnets": {"control_image": "e.png"},
    **{
        name: {"image": "e.png", "controlnets": "edges"}
        for name in ("control_image", "control_preprocessor", "guess_mode")
    },
    **{name: {"hires_scale": 1.5} for name in ("hires_upscaler", "hires_steps", "hires_strength")},
    **{
        name: {"upscaler": "4x"}
        for name in ("upscale_by", "upscaler_steps", "upscaler_guidance_scale", "upscaler_noise_level")
    },
}
