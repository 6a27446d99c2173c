"""Many runs side by side: found in their folders, grouped over seeds, ranked with what chance allows to say."""
