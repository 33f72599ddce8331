# DAT-T. Necks and heads take their input channels from here.
arch = 'tiny'
channels = [96, 192, 384, 768]
