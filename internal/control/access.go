package control

import (
	"encoding/json"

	"github.com/boughdb/bough/internal/core"
)

// maxAllowedIPs bounds what every connection has to be compared with.
const maxAllowedIPs = 1000

// accessSettings are the parts of a project's settings that say from where clients may connect.
type accessSettings struct {
	IPs struct {
		IPs           []string `json:"ips"`
		ProtectedOnly bool     `json:"protected_branches_only"`
	} `json:"allowed_ips"`
	BlockPublic bool `json:"block_public_connections"`
}

func (a accessSettings) check() error {
	if len(a.IPs.IPs) > maxAllowedIPs {
		return core.Invalidf("settings.allowed_ips.ips has %d entries; at most %d are possible: join them to CIDR blocks", len(a.IPs.IPs), maxAllowedIPs)
	}
	for i, entry := range a.IPs.IPs {
		if _, err := core.ParseAddressRange(entry); err != nil {
			return core.Invalidf("settings.allowed_ips.ips[%d]: %s", i, core.UserMessage(err))
		}
	}
	return nil
}

// accessOf reads from a project's settings who may connect to the endpoints of a branch. Settings that cannot be read are
// an error: they must not open a door.
func accessOf(settings json.RawMessage, protectedBranch bool) (core.Access, error) {
	var s accessSettings
	if err := json.Unmarshal(settings, &s); err != nil {
		return core.Access{}, core.Wrap(err, "control.access", "the project's settings in the control database are damaged")
	}
	access := core.Access{AllowedIPs: s.IPs.IPs, PrivateOnly: s.BlockPublic}
	if s.IPs.ProtectedOnly && !protectedBranch {
		access.AllowedIPs = nil
	}
	return access, nil
}
