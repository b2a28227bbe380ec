-- Read what a resend of delivery $1 copies, and an id for it; no row where its content is gone.
SELECT mail.new_id() AS id, sender, message FROM mail.payloads WHERE delivery_id = $1::uuid AND message IS NOT NULL
