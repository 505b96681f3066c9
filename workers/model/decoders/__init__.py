"""The two decoders of the protocol: UPerNet for every encoder but U-Net, which has its own."""
