# DAT+, which the authors released beside DAT++: DAT-T++ without its convolutions. There is one size.
arch = 'tiny+'
channels = [64, 128, 256, 512]
