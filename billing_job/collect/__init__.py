"""an invoice snapshot → paid: every step at Stripe, what Stripe reports of it, voids and credit notes."""
