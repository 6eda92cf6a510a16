package core

import (
	"net/netip"
	"strings"
)

// AddressRange is one entry of a list of allowed addresses: from Low to High, both included and of one family.
type AddressRange struct {
	Low, High netip.Addr
}

// ParseAddressRange reads a single address, a CIDR block or a range "from-to".
func ParseAddressRange(s string) (AddressRange, error) {
	s = strings.TrimSpace(s)
	if from, to, ok := strings.Cut(s, "-"); ok {
		low, err1 := parseAddress(from)
		high, err2 := parseAddress(to)
		if err1 == nil && err2 == nil && low.BitLen() == high.BitLen() && low.Compare(high) <= 0 {
			return AddressRange{low, high}, nil
		}
	} else if prefix, err := netip.ParsePrefix(s); err == nil {
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		prefix = prefix.Masked()
		return AddressRange{prefix.Addr(), lastOf(prefix)}, nil
	} else if one, err := parseAddress(s); err == nil {
		return AddressRange{one, one}, nil
	}
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return AddressRange{}, Invalidf("%q is not an IP address, a CIDR block such as 10.0.0.0/8, or a range such as 10.0.0.1-10.0.0.9", s)
}

// parseAddress reads an address of the network: one with a zone means something on one machine only.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err == nil && a.Zone() != "" {
		err = Invalidf("an address with a zone")
	}
	return a.Unmap(), err
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// Contains tells whether an address is in the range. An IPv4 address that is written as an IPv6 one counts as what it is.
func (r AddressRange) Contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.BitLen() == r.Low.BitLen() && r.Low.Compare(a) <= 0 && a.Compare(r.High) <= 0
}

// Access says from where clients may connect to an endpoint.
type Access struct {
	AllowedIPs  []string // see ParseAddressRange; empty means from everywhere
	PrivateOnly bool     // from loopback and private addresses only, and from all of them
}
