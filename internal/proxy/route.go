package proxy

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/boughdb/bough/internal/core"
)

const poolerSuffix = "-pooler"

var endpointForm = regexp.MustCompile(`^[a-z0-9-]{1,60}$`)

// route is the endpoint a client asked for. An empty id means that it named none.
type route struct {
	endpointID string
	pooled     bool
}

// parseRoute reads an endpoint name: an id, with -pooler for the pooled path.
func parseRoute(name string) (route, error) {
	var r route
	r.endpointID, r.pooled = strings.CutSuffix(name, poolerSuffix)
	if !endpointForm.MatchString(r.endpointID) {
		f := fatalf(codeInvalidAuth, "%q is not an endpoint id: ids have lower-case letters, digits and hyphens", clip(name, 80))
		f.hint = hintPassEndpoint
		return route{}, f
	}
	return r, nil
}

// findRoute combines the TLS server name and the startup options. A server name outside the domain, localhost for
// instance, says nothing.
func findRoute(serverName, domain, option string) (route, error) {
	var fromSNI, fromOption route
	var err error
	if label := endpointLabel(serverName, domain); label != "" {
		if fromSNI, err = parseRoute(label); err != nil {
			return route{}, err
		}
	}
	if option != "" {
		if fromOption, err = parseRoute(option); err != nil {
			return route{}, err
		}
	}
	switch {
	case fromOption.endpointID == "":
		return fromSNI, nil
	case fromSNI.endpointID == "":
		return fromOption, nil
	case fromSNI.endpointID != fromOption.endpointID:
		f := fatalf(codeInvalidAuth, "the host name asks for endpoint %q and the options ask for endpoint %q",
			fromSNI.endpointID, fromOption.endpointID)
		f.hint = "Use one of them, or make both the same."
		return route{}, f
	}
	fromSNI.pooled = fromSNI.pooled || fromOption.pooled
	return fromSNI, nil
}

// endpointLabel is the first label of a server name that ends in the domain, "" for any other name.
func endpointLabel(serverName, domain string) string {
	name := strings.TrimSuffix(strings.ToLower(serverName), ".")
	sub, ok := strings.CutSuffix(name, "."+domain)
	if !ok || domain == "" {
		return ""
	}
	label, _, _ := strings.Cut(sub, ".")
	return label
}

// refuseAddress tells a client why its address may not connect; nil when it may. An entry that cannot be read lets nobody in.
func refuseAddress(access core.Access, addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if access.PrivateOnly {
		if addr.IsLoopback() || addr.IsPrivate() {
			return nil
		}
		return fatalf(codeInvalidAuth, "This IP address %s is not allowed to connect to this endpoint: it accepts no connections from public addresses", addr)
	}
	if len(access.AllowedIPs) == 0 || slices.ContainsFunc(access.AllowedIPs, func(entry string) bool {
		r, err := core.ParseAddressRange(entry)
		return err == nil && r.Contains(addr)
	}) {
		return nil
	}
	return fatalf(codeInvalidAuth, "This IP address %s is not allowed to connect to this endpoint", addr)
}

// clip keeps what a stranger sent short in messages and logs.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
