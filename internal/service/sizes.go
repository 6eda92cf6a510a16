package service

import (
	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/core"
)

// The values of --cgroups.
const (
	cgroupsAuto = "auto"
	cgroupsOff  = "off"
)

// groups opens the control groups of computes, or says why there are none; then computes run without limits.
func (s *Server) groups() (groups *cgroup.Tree, why string) {
	if s.cfg.Cgroups == cgroupsOff {
		why = "--cgroups is off"
	} else {
		var err error
		if groups, err = cgroup.Open(s.layout.id()); err == nil {
			s.sizes = "enforced"
			s.log.Info("the sizes of computes are enforced", "cgroup_version", groups.Version())
			return groups, ""
		}
		why = core.UserMessage(err)
		s.log.Debug("control groups cannot be used", "error", err)
	}
	s.sizes = "not enforced: " + why
	s.log.Warn("the sizes of computes are not enforced: each may use the whole machine, and none is autoscaled", "reason", why)
	if !s.fleet.alone {
		return nil, why
	}
	// Computes that an earlier server limited.
	if err := cgroup.Lift(s.layout.id()); err != nil {
		s.log.Warn("limits of an earlier server stay", "error", err)
	}
	return nil, why
}
