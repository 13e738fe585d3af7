"""What the organization pays: account, ledgers, bills, contracts, invoices, offerings, meters and prices."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from extractor.sandbox.history import Chapter
from extractor.sandbox.rows import Row, Rows
from extractor.sandbox.world import AGE_DAYS, World, instant

__all__ = (
    "account",
    "bill",
    "bill_v2",
    "commit_ledger",
    "contacts",
    "contracts",
    "countries",
    "credit_ledger",
    "days_billed",
    "invoice_details",
    "invoice_pdf",
    "invoices",
    "meters",
    "months",
    "offerings",
    "payment_methods",
    "prices",
    "states",
    "tax",
)

_COUNTRIES = (
    ("PL", "POL", "Poland"),
    ("DE", "DEU", "Germany"),
    ("US", "USA", "United States"),
    ("CA", "CAN", "Canada"),
    ("CI", "CIV", "Côte d'Ivoire"),
    ("SU", "SUN", "Soviet Union"),
)
_STATES = (
    ("US", "CA", "California"),
    ("US", "NY", "New York"),
    ("CA", "QC", "Québec"),
    ("CA", "ON", "Ontario"),
)
_METERS = ("compute", "storage", "iops", "transfer")
_INVOICES = 4


def account(world: World) -> Rows:
    """The billing account: one row."""
    money = world.chance.money
    return Rows.of(
        [
            {
                "active": True,
                "legal_entity_identifier": "",
                "number": f"A{world.chance.bits('account', 0) % 10**8:08d}",
                "organization_id": world.org,
                "remittance": False,
                "scu_consumed_mtd": money("consumed", 0, 900),
                "scu_remaining_mtd": money("remaining", 0, 900),
                "start_date": _day(world, AGE_DAYS - 1),
                "status": "active",
                "subscription": {"payment_collection_method": "automatic", "status": "active"},
                "tier": "power",
                "trial_credit": 500,
            }
        ]
    )


def commit_ledger(world: World) -> Rows:
    """Postpaid commitments, a row for each month."""
    rows: list[Row] = [
        {
            "contract_entitlement_id": world.chance.uuid("entitlement", 0),
            "created_at": instant(world.moment("commit", n)),
            "id": world.chance.uuid("commit", n),
            "invoice_amount": world.chance.money("commit", n, 9000),
            "min_compute_commit": 1000,
            "org_id": world.org,
            "period": month,
            "unused_compute_commit": world.chance.money("unused", n, 900),
        }
        for n, month in enumerate(months(world))
    ]
    return world.kept("commit ledger", lambda: world.keyed(rows, label="commit"))


def credit_ledger(world: World) -> Rows:
    """Prepaid credit, given and used."""
    rows: list[Row] = [
        {
            "amount": (-1 if n % 2 else 1) * world.chance.money("credit", n, 500),
            "batch": n // 2,
            "contract_id": world.chance.uuid("contract", 0),
            "created_at": instant(world.moment("credit", n)),
            "id": world.chance.uuid("credit", n),
            "org_id": world.org,
            "reason": "usage" if n % 2 else "grant",
            "type": "debit" if n % 2 else "credit",
        }
        for n in range(5)
    ]
    return world.kept("credit ledger", lambda: world.keyed(rows, label="credit"))


def months(world: World) -> list[str]:
    """The months "YYYY-MM" that the organization has lived in, oldest first."""
    until = world.elapsed // 86_400 + 1 if world.elapsed else 0
    days = (world.anchor - timedelta(days=back) for back in range(AGE_DAYS, -until, -1))
    return sorted({day.strftime("%Y-%m") for day in days})


def bill(world: World, month: str) -> Row:
    """The bill of a month; the costs of a line are an open map."""
    lines: list[Row] = [
        {
            "bill_id": world.chance.uuid("bill", _number(month)),
            "cost": {
                "compute": [_cost(world, n, "sky-2x8"), _cost(world, n + 40, "sky-2x4")][: 1 + n % 2],
                "storage": [_cost(world, n + 80, "gp3")],
                **({} if n % 3 else {"data transfer": []}),
            },
            "id": world.chance.uuid(f"bill line {month}", n),
            "service": {
                "name": world.service_name(n),
                "provider": world.provider(n),
                "region": world.region(n),
                "service_id": world.service_id(n),
                "topology": world.topology(n),
            },
        }
        for n in range(min(world.options.services, 20))
    ]
    return {
        **_totals(world, month),
        "line_items": lines,
        "unused_compute_commit_ledger": world.chance.money("ledger", _number(month), 90),
    }


def bill_v2(world: World, month: str) -> Row:
    """The bill of a month in its second form: items by resource, with open maps of dimensions."""
    items: list[Row] = [
        {
            "id": world.chance.uuid(f"item {month}", n),
            "line_items": {
                meter: [_line(world, meter, n * 4 + place)]
                for place, meter in enumerate(_METERS[: 1 + n % 3])
            },
            "resource": {
                "dimensions": {"provider": world.provider(n), "topology": world.topology(n)},
                "name": world.service_name(n),
                "resource_id": world.service_id(n),
            },
            "total": world.chance.money(f"item {month}", n, 900),
        }
        for n in range(min(world.options.services, 20))
    ]
    return {
        **_totals(world, month),
        "items": items,
        "other_cost": world.chance.money("other", _number(month), 9),
    }


def contacts(world: World) -> Rows:
    """Billing contacts."""
    rows: list[Row] = [
        {
            "address": {
                "address_line_1": "ul. Prosta 1",
                "address_line_2": None,
                "city": "Łódź",
                "country": "PL",
                "postal_code": "90-001",
                "state": "",
            },
            "email": f"billing{n}@example.com",
            "first_name": "Ada",
            "id": world.chance.uuid("contact", n),
            "last_name": "Ash",
            "phone": "+48 000 000 000",
            "type": ("billing", "technical")[n],
        }
        for n in range(2)
    ]
    return world.kept("contacts", lambda: world.keyed(rows, label="contact"))


def contracts(world: World, params: Mapping[str, str]) -> Rows | None:
    """The contracts of the organization; the specification of an entitlement may be any JSON."""
    if params["org_id"] != world.org:
        return None
    specs: tuple[object, ...] = (
        {"tier": "power", "limits": [1, 2.5]},
        "unlimited",
        [{"a": None}],
        12.5,
        True,
    )
    contract = world.chance.uuid("contract", 0)
    start, end = instant(world.birth_epoch), instant(world.anchor_epoch - 1)
    entitlements: list[Row] = [
        {
            "contract_id": contract,
            "created_at": start,
            "end_date": end,
            "entitlement_id": world.chance.uuid("entitled", n),
            "id": world.chance.uuid("entitlement", n),
            "spec": spec,
            "start_date": start,
        }
        for n, spec in enumerate(specs)
    ]
    row: Row = {
        "billing_mode": "postpaid",
        "created_at": start,
        "created_by": "system",
        "currency": "USD",
        "end_date": end,
        "entitlements": entitlements,
        "estimated_contract_commit": 12000,
        "estimated_contract_value": 24000.5,
        "execution_date": start,
        "id": contract,
        "integration_id": "",
        "marketing_collaboration_discount": False,
        "org_id": world.org,
        "renewal_date": None,
        "renewal_id": None,
        "start_date": start,
        "state": "active",
        "updated_at": start,
        "updated_by": "system",
    }
    return world.kept("contracts", lambda: world.keyed([row], label="contract"))


def invoices(world: World) -> Rows:
    """Invoices, one for each week, newest first."""
    listed = [_invoice(world, n) for n in range(_INVOICES)]
    # Where time passes, an invoice comes each week, a day after its date.
    world.narrate("invoices", lambda now: Chapter(added=int(now - world.anchor_epoch) // (7 * 86_400)))
    return world.kept(
        "invoices", lambda: world.rows(_INVOICES, listed.__getitem__, lambda n: _invoice(world, -n - 1))
    )


def invoice_details(world: World, params: Mapping[str, str]) -> Rows | None:
    """One invoice with what was used, by service and node."""
    found = invoices(world).find("invoice_id", params["invoice_id"])
    if found is None:
        return None
    money = world.chance.money
    row: Row = {
        **_invoice(world, found),
        "bill_date": _day(world, found * 7 + 2),
        "currency": "USD",
        "scu_consumed": money("scu", found, 90),
        "scu_remaining": money("scu left", found, 90),
        "services": [_usage(world, found, n) for n in range(min(world.options.services, 3))],
        "status": "paid" if found else "open",
        "symbol": "$",
        "usage_end_date": _day(world, found * 7 + 2),
        "usage_start_date": _day(world, min(found * 7 + 8, AGE_DAYS)),
    }
    return Rows.of([row])


def invoice_pdf(world: World, invoice_id: str) -> bytes | None:
    """An invoice as a valid PDF of one page; None where there is no such invoice."""
    found = invoices(world).find("invoice_id", invoice_id)
    if found is None:
        return None
    amount = _invoice(world, found)["invoice_amount"]
    text = f"BT /F1 18 Tf 72 720 Td (Invoice {invoice_id}: USD {amount}) Tj ET".encode()
    bodies = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    )
    # Bytes above 127 in the second line mark the file as binary, as the format advises.
    document = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets: list[int] = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(bodies) + 1
    return (
        document
        + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (
            size,
            rows,
            size,
            len(document),
        )
    )


def countries(world: World) -> Rows:
    """Countries to bill to."""
    rows: list[Row] = [
        {
            "active": short != "SU",
            "iso3166_2": short,
            "iso3166_3": long,
            "lei": "",
            "name": name,
            "vat": n < 2,
        }
        for n, (short, long, name) in enumerate(_COUNTRIES)
    ]
    return world.kept("countries", lambda: world.keyed(rows, label="country"))


def states(world: World) -> Rows:
    """States and provinces."""
    rows: list[Row] = [
        {"active": short != "ON", "country": country, "iso_short": short, "name": name}
        for country, short, name in _STATES
    ]
    return world.kept("states", lambda: world.keyed(rows, label="state"))


def offerings(world: World) -> Rows:
    """What may be bought."""
    rows: list[Row] = [
        {
            "description": f"{name} services",
            "name": name,
            "offering_id": world.chance.uuid("offering", n),
            "product_mapping": f"product-{n}",
        }
        for n, name in enumerate(("foundation", "power", "serverless", "analytics"))
    ]
    return world.kept("offerings", lambda: world.keyed(rows, label="offering"))


def meters(world: World, offering: str) -> Rows | None:
    """The meters of an offering."""
    found = offerings(world).find("offering_id", offering)
    if found is None:
        return None
    rows = [_meter(world, found, n) for n in range(len(_METERS))]
    return world.kept(f"meters {found}", lambda: world.keyed(rows, label="meter"))


def prices(world: World, offering: str) -> Rows | None:
    """The prices of an offering, by its id or its name."""
    found = offerings(world).find("offering_id", offering)
    if found is None:
        found = offerings(world).find("name", offering)
    if found is None:
        return None
    rows = [_price(world, found, n) for n in range(12)]
    return world.kept(f"prices {found}", lambda: world.keyed(rows, label="price"))


def payment_methods(world: World) -> Rows:
    """Cards on file, masked."""
    rows: list[Row] = [
        {
            "billing_details": {"country": "PL", "name": "Ada Ash"},
            "card": {
                "card_type": "visa",
                "cvc_validation": True,
                "expiration_month": 4,
                "expiration_year": 2031,
                "masked_card_number": "************4242",
            },
            "default_payment_method": True,
            "payment_method_id": world.chance.uuid("payment", 0),
            "type": "card",
        }
    ]
    return world.kept("payment methods", lambda: world.keyed(rows, label="payment"))


def tax(world: World) -> Rows | None:
    """The tax record of the organization: one row, or none at all."""
    if "tax-404" in world.options.variants:
        return None
    return Rows.of([{"country": "PL", "postal_code": "90-001", "registration": "PL0000000000"}])


def _day(world: World, back: int) -> str:
    return (world.anchor - timedelta(days=back)).strftime("%Y-%m-%d")


def _number(month: str) -> int:
    return int(month.replace("-", ""))


def _totals(world: World, month: str) -> Row:
    number, days = _number(month), days_billed(world, month)

    def money(kind: str, most: int) -> float:
        return world.chance.money(kind, number, most)

    return {
        "additional_compute_discount": 0,
        "billing_mode": "postpaid",
        "currency": "USD",
        "currency_symbol": "$",
        "data_transfer_cost": money("transfer", 90),
        "discount": 12.5,
        "discounted_compute_cost": money("discounted", 900),
        "id": world.chance.uuid("bill", number),
        "min_compute_cost": 100,
        "org_id": world.org,
        "period": month,
        "remaining_credit": money("credit left", 400),
        "support_cost": money("support", 99),
        "support_type": "enterprise",
        "tier": "power",
        "total": round(money("total", 9000) + days, 4),
        "total_compute_cost": money("compute", 5000),
        "total_storage_cost": money("storage", 900),
        "undiscounted_compute_cost": money("undiscounted", 5000),
        "unused_compute_commit": money("unused commit", 100),
        "usage_days": 1 + number % 28 + days,
    }


def days_billed(world: World, month: str) -> int:
    """How many days of a month were counted since the anchor; the last is counted a day after its end."""
    if not world.elapsed:
        return 0
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    present = world.anchor + timedelta(seconds=world.elapsed - 86_400)
    return max(0, (min(present, end) - max(world.anchor, start)).days)


def _cost(world: World, n: int, instance: str) -> Row:
    return {
        "active_nodes": 1 + n % 3,
        "instance": instance,
        "name": f"{instance} hours",
        "price_per_hour": world.chance.money("hour", n, 3),
        "total_cost": world.chance.money("cost", n, 900),
        "total_hours": 672 - n / 4,
    }


def _line(world: World, meter: str, n: int) -> Row:
    money = world.chance.money
    return {
        "billable_usage": money("billable", n, 900),
        "dimensions": {"size": "sky-2x8", "arch": "amd64"} if n % 2 else {},
        "included_usage": 0,
        "included_usage_amount": 0,
        "included_usage_limit": 0,
        "meter": meter,
        "price_id": world.chance.uuid("price", n),
        "quantity": money("quantity", n, 700),
        "rate": money("rate", n, 2),
        "rate_unit": "hour",
        "total": money("line", n, 900),
        "unit": "USD",
    }


def _invoice(world: World, n: int) -> Row:
    date = _day(world, n * 7 + 1)
    return {
        "invoice_amount": world.chance.money("invoice", n, 9000),
        "invoice_date": date,
        "invoice_due_date": _day(world, max(1, n * 7 - 6) if n >= 0 else n * 7 - 6),
        "invoice_id": f"INV-{world.chance.bits('invoice', n) % 10**8:08d}-{n}",
        "invoice_pdf_url": f"/public/services/bcs/invoices/{n}/pdf",
        "org_id": world.org,
        "period": date[:7],
    }


def _usage(world: World, invoice: int, n: int) -> Row:
    money = world.chance.money
    number = invoice * 10 + n
    return {
        "cost": money("usage", number, 900),
        "node_cost": money("node", number, 700),
        "nodes": [
            {
                "active_nodes": 1,
                "cost": money("node cost", number + place, 300),
                "quantity": 168 - place / 2,
                "rate": money("node rate", number + place, 2),
                "rate_unit": "hour",
                "size": "sky-2x8",
                "unit": "hours",
            }
            for place in range(1 + n)
        ],
        "service": {
            "arch": "amd64",
            "instance": "sky-2x8",
            "name": world.service_name(n),
            "provider": world.provider(n),
            "region": world.region(n),
            "service_id": world.service_id(n),
            "tier": "power",
            "topology": world.topology(n),
        },
        "storage": {
            "cost": money("disk", number, 90),
            "iops": _metered(world, "iops", number),
            "quantity": 100,
            "rate": 0.0001,
            "rate_unit": "GB-hour",
            "throughput": _metered(world, "throughput", number),
            "total_cost": money("disk total", number, 99),
            "type": "gp3",
            "unit": "GB",
        },
    }


def _metered(world: World, kind: str, n: int) -> Row:
    return {
        "cost": world.chance.money(kind, n, 20),
        "quantity": 3000,
        "rate": 0.005,
        "rate_unit": "month",
        "unit": kind,
    }


def _meter(world: World, offering: int, n: int) -> Row:
    return {
        "class": "usage",
        "description": f"{_METERS[n]} used",
        "label": _METERS[n].title(),
        "meter_id": world.chance.uuid("meter", offering * 10 + n),
        "name": _METERS[n],
        "offering_id": world.chance.uuid("offering", offering),
        "price_dimensions": {"provider": True, "region": n % 2 == 0} if n else {},
        "unit": ("hour", "GB", "op", "GB")[n],
    }


def _price(world: World, offering: int, n: int) -> Row:
    hour = world.chance.money("price", offering * 100 + n, 3)
    return {
        "dimensions": {"provider": ("aws", "gcp", "azure")[n % 3], "tier": ("foundation", "power")[n % 2]},
        "end_range": None if n % 4 else 1000,
        "id": world.chance.uuid("meter price", offering * 100 + n),
        "meter": _meter(world, offering, n % len(_METERS)),
        "price": {
            "currency": "USD",
            "monthly_commit": 0,
            "multiplier": 1,
            "price_per_hour": hour,
            "price_per_min": round(hour / 60, 4),
            "price_per_month": round(hour * 730, 4),
            "scale_fabric_price_per_hour": None,
            "scale_fabric_price_per_min": None,
            "scale_fabric_price_per_month": None,
        },
        "start_range": 0 if n % 4 else 0.0001,
        "type": "tiered" if n % 4 == 0 else "flat",
    }
