"""What prompts and responses must not carry unseen: personal data, unsafe content, licences, unknown origins."""
