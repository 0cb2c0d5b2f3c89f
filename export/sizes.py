"""The sizes that synthetic checkpoints come in: `synthetic` has the official ones, `tiny` is for tests,
`slim` for `bench host`."""

from export.layout import ConvNeXtSizes, GPTSizes, Sizes, VocosSizes

SIZES = {
    "synthetic": Sizes(
        gpt=GPTSizes(
            hidden=768,
            intermediate=3072,
            num_layers=20,
            num_heads=12,
            max_positions=4096,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            num_text_tokens=21_178,
        ),
        decoder=ConvNeXtSizes(idim=384, odim=384, hidden=512, num_layers=12, bn_dim=128),
        dvae_encoder=ConvNeXtSizes(idim=512, odim=1024, hidden=256, num_layers=12, bn_dim=128),
        dvae_decoder=ConvNeXtSizes(idim=512, odim=512, hidden=256, num_layers=12, bn_dim=128),
        vq=1024,
        vocos=VocosSizes(dim=512, intermediate=1536, num_layers=8),
    ),
    "tiny": Sizes(
        gpt=GPTSizes(
            hidden=64,
            intermediate=160,
            num_layers=2,
            num_heads=2,
            max_positions=4096,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            num_text_tokens=1_200,
        ),
        decoder=ConvNeXtSizes(idim=32, odim=32, hidden=32, num_layers=2, bn_dim=16),
        dvae_encoder=ConvNeXtSizes(idim=32, odim=64, hidden=24, num_layers=2, bn_dim=16),
        dvae_decoder=ConvNeXtSizes(idim=32, odim=32, hidden=24, num_layers=2, bn_dim=16),
        vq=64,
        vocos=VocosSizes(dim=32, intermediate=96, num_layers=2),
    ),
    "slim": Sizes(
        gpt=GPTSizes(
            hidden=768,
            intermediate=64,
            num_layers=1,
            num_heads=12,
            max_positions=4096,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            num_text_tokens=1_200,
        ),
        decoder=ConvNeXtSizes(idim=384, odim=384, hidden=16, num_layers=1, bn_dim=8),
        dvae_encoder=ConvNeXtSizes(idim=32, odim=64, hidden=24, num_layers=1, bn_dim=16),
        dvae_decoder=ConvNeXtSizes(idim=32, odim=32, hidden=24, num_layers=1, bn_dim=16),
        vq=64,
        vocos=VocosSizes(dim=16, intermediate=32, num_layers=1),
    ),
}
