"""What more than one benchmark needs: the llamas, a train step, taking turns, FLOPs and memory."""
