-- One round of the demo's writer: what a shop does all day. Run in a loop while the lake follows.

BEGIN; -- an order with its items and its payment: one transaction, which the lake shows whole or not at all
WITH placed AS (
    INSERT INTO orders SELECT coalesce(max(id), 0) + 1, 1 + (random() * 9999)::int, 'paid', 0, now(), NULL FROM orders RETURNING id
), items AS (
    INSERT INTO order_items
    SELECT placed.id, row_number() OVER (), p.sku, 1 + (random() * 3)::int, p.price
    FROM placed, (SELECT sku, price FROM products ORDER BY random() LIMIT 3) p RETURNING order_id, quantity * unit_price AS amount
)
INSERT INTO payments SELECT gen_random_uuid(), order_id, sum(amount), 'card', now() FROM items GROUP BY order_id;
UPDATE orders SET total = (SELECT amount FROM payments WHERE order_id = orders.id) WHERE id = (SELECT max(id) FROM orders);
COMMIT;

-- Stock moves; the long description beside it is not touched, so the WAL does not carry it.
UPDATE products SET stock = stock - 1 WHERE sku = (SELECT 'SKU-' || lpad((1 + (random() * 999)::int)::text, 5, '0'));
-- A few orders move on, a customer moves house, one renames their address.
UPDATE orders SET status = 'shipped' WHERE id IN (SELECT id FROM orders WHERE status = 'paid' ORDER BY random() LIMIT 5);
UPDATE customers SET country = 'PT', interests = interests || 'sea'::text WHERE id = (SELECT 1 + (random() * 9999)::int);
UPDATE customers SET email = 'new-' || txid_current() || '@example.com' WHERE id = (SELECT 1 + (random() * 9999)::int);
-- A key changes.
UPDATE order_items SET line = line + 100 WHERE (order_id, line) =
    (SELECT order_id, line FROM order_items WHERE line < 100 AND order_id >= (SELECT (random() * 29000)::int) ORDER BY order_id, line LIMIT 1);
-- Old events go, new ones come, one order is cancelled with all that hangs on it.
DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT 20);
INSERT INTO events (at, session, kind, payload, tags) SELECT now(), gen_random_uuid(), 'view', jsonb_build_object('n', i), ARRAY['live'] FROM generate_series(1, 30) i;
DELETE FROM orders WHERE id = (SELECT id FROM orders WHERE status = 'open' ORDER BY random() LIMIT 1);
