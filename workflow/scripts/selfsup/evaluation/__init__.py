"""What an encoder is worth: linear evaluation, metrics, the encoder file, the table."""
