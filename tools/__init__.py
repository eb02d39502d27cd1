"""What makes and checks releases and images; no part of any distribution."""
