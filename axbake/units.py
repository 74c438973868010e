"""Times, sizes and names, for people."""

CAPITALS = {
    "autov2": "AutoV2",
    "clip": "CLIP",
    "lora": "LoRA",
    "onnx": "ONNX",
    "psnr": "PSNR",
    "sha256": "SHA-256",
    "snr": "SNR",
    "sqnr": "SQNR",
    "ssim": "SSIM",
    "unet": "UNet",
    "vae": "VAE",
}


def in_words(key: str) -> str:
    """A *key* of files and settings as people say it: `vae_decoder` is «VAE decoder», `onnx/unet` is «ONNX, UNet»."""
    return ", ".join(" ".join(CAPITALS.get(word, word) for word in part.split("_")) for part in key.split("/"))


def duration(seconds: float) -> str:
    """*seconds* for people: `0.4 s`, `48 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size_of(size: float) -> str:
    """*size* in bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def megabytes(size: int) -> str:
    """*size* in bytes for people."""
    return f"{size / 1e6:,.1f} MB"
