# DAT-T++. Necks and heads take their input channels from here.
arch = 'tiny++'
channels = [64, 128, 256, 512]
