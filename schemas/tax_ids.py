"""Checks of a tax ID when it is entered: its type, and for some types the form of its value. Pure.

Stripe checks more than this when a customer is made; what it refuses then is the reason of that customer's invoices.
"""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

VALUE_LENGTH_MAX = 64

# Source: Stripe, "Customer tax IDs", in the API version that is pinned (a test compares them with the SDK's).
TYPES = frozenset(
    """
    ad_nrt ae_trn al_tin am_tin ao_tin ar_cuit au_abn au_acn au_arn au_wpn aw_tin az_tin ba_tin bb_tin bd_bin bf_ifu
    bg_uic bh_vat bj_ifu bo_tin br_cnpj br_cpf bs_tin bw_vat by_tin ca_bn ca_gst_hst ca_pst_bc ca_pst_mb ca_pst_sk
    ca_qst cd_nif ch_uid ch_vat ci_vat cl_tin cm_niu cn_tin co_nit cr_tin cv_nif cz_dic de_stn do_rcn ec_ruc eg_tin
    es_cif et_tin eu_oss_vat eu_vat fo_vat fr_siren fr_siret fr_spi gb_vat ge_vat gh_tin gi_tin gn_nif hk_br hr_oib
    hu_tin ic_nif id_npwp il_vat in_gst is_kt is_vat it_cf jp_cn jp_rn jp_trn ke_pin kg_tin kh_tin kr_brn kz_bin la_tin
    li_uid li_vat lk_vat ma_vat md_cf md_vat me_pib mk_vat mr_nif mu_vat mx_rfc my_frp my_itn my_sst mz_nuit ng_tin
    no_vat no_voec np_pan nz_bn nz_gst om_vat pe_ruc ph_tin pl_nip pt_nif py_ruc ro_tin rs_pib ru_inn ru_kpp sa_vat
    sg_gst sg_uen si_tin sm_coe sn_ninea sr_fin sv_nit th_vat tj_tin tr_tin tt_bir tt_vat tw_vat tz_vat ua_vat ug_tin
    us_ein uy_ruc uz_tin uz_vat ve_rif vn_tin za_vat zm_tin zw_tin
    """.split()  # noqa: SIM905 - a list of so many words is no easier to read
)

# Source: European Commission, VIES, "VAT identification number structure".
_EU_VAT = {
    "AT": r"U\d{8}",
    "BE": r"[01]\d{9}",
    "BG": r"\d{9,10}",
    "CY": r"\d{8}[A-Z]",
    "CZ": r"\d{8,10}",
    "DE": r"\d{9}",
    "DK": r"\d{8}",
    "EE": r"\d{9}",
    "EL": r"\d{9}",
    "ES": r"[A-Z0-9]\d{7}[A-Z0-9]",
    "FI": r"\d{8}",
    "FR": r"[A-HJ-NP-Z0-9]{2}\d{9}",
    "HR": r"\d{11}",
    "HU": r"\d{8}",
    "IE": r"\d[A-Z0-9+*]\d{5}[A-Z]{1,2}",
    "IT": r"\d{11}",
    "LT": r"(\d{9}|\d{12})",
    "LU": r"\d{8}",
    "LV": r"\d{11}",
    "MT": r"\d{8}",
    "NL": r"\d{9}B\d{2}",
    "PL": r"\d{10}",
    "PT": r"\d{9}",
    "RO": r"\d{2,10}",
    "SE": r"\d{12}",
    "SI": r"\d{8}",
    "SK": r"\d{10}",
    "XI": r"(\d{9}|\d{12}|GD\d{3}|HA\d{3})",
}
_VALUES = {
    "eu_vat": re.compile("|".join(f"{country}{number}" for country, number in _EU_VAT.items()), re.ASCII),
    "gb_vat": re.compile(r"GB(\d{9}|\d{12}|GD\d{3}|HA\d{3})", re.ASCII),
}


def check_tax_id(type_: str, value: str) -> None:
    """Raises PydanticCustomError: the type is none of Stripe's, or the value can't be one of that type."""
    if type_ not in TYPES:
        raise PydanticCustomError(
            "tax_id_type", "Stripe knows no tax ID type {type}: write eu_vat, gb_vat, us_ein …", {"type": repr(type_)}
        )
    # Blanks, dots and hyphens are how people write them; Stripe leaves them out.
    written = re.sub(r"[\s.-]", "", value).upper()
    known = _VALUES.get(type_)
    if not written or len(value) > VALUE_LENGTH_MAX or (known is not None and not known.fullmatch(written)):
        raise PydanticCustomError(
            "tax_id_invalid", "{value} is no {type} number", {"value": repr(value[:VALUE_LENGTH_MAX]), "type": type_}
        )
