package control

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

func unitOn(dataDir string) func(compute.Unit) bool {
	return func(u compute.Unit) bool { return u.DataDir == dataDir }
}

func unitOf(id string) func(compute.Unit) bool {
	return func(u compute.Unit) bool { return u.EndpointID == id }
}

// checkComputes compares endpoints, handles, computes that the manager knows, and processes.
func (l *look) checkComputes() []Finding {
	if l.s == nil {
		return l.checkResting()
	}
	var out []Finding
	for _, p := range l.procs {
		if l.working(p.DataDir) || l.draftInUse(filepath.Base(p.DataDir)) || !l.ours(filepath.Base(p.DataDir)) {
			continue
		}
		out = append(out, Finding{Kind: DriftStray, Subject: strconv.Itoa(p.PID) + " in " + filepath.Base(p.DataDir),
			Problem: fmt.Sprintf("A PostgreSQL server (pid %d) runs on the volume %s, and no endpoint has started it.", p.PID, p.DataDir),
			Will:    "end it", Advice: "if you started it yourself: work on a copy outside of the pool",
			Repair: l.fix(func(ctx context.Context, s *Service) error { return s.endStray(ctx, p) })})
	}
	handles := map[string]bool{}
	for _, h := range l.inv.Handles {
		handles[h.ComputeID] = true
		if slices.ContainsFunc(l.units, unitOf(h.ComputeID)) || l.busy[h.BranchID] || !l.ours(h.BranchID) {
			continue
		}
		out = append(out, Finding{Kind: DriftStaleHandle, Subject: h.ComputeID,
			Problem: fmt.Sprintf("The control database records a running compute for %s, and the server knows of none.", h.ComputeID),
			Will:    "take the compute over if it runs, else remove the record",
			Repair:  l.fix(func(ctx context.Context, s *Service) error { return s.settleHandle(ctx, h) })})
	}
	for _, id := range l.groups {
		if !slices.ContainsFunc(l.units, unitOf(id)) && !l.busy[l.endpoints[id].BranchID] && !l.busy[id] && l.ours(id) {
			out = append(out, Finding{Kind: DriftGroup, Subject: id, Problem: fmt.Sprintf("The control group of %s is left, and its compute does not run.", id), Will: "remove it",
				Repair: l.fix(func(ctx context.Context, s *Service) error { return s.removeGroup(ctx, id, l.endpoints[id].BranchID) })})
		}
	}
	up := map[string]bool{}
	for _, u := range l.units {
		if !u.Running {
			continue
		}
		up[u.EndpointID] = true
		branch := l.endpoints[u.EndpointID].BranchID
		b, own := l.branches[u.EndpointID] // work on a branch
		if own {
			branch = b.ID
		}
		if l.busy[branch] {
			continue
		}
		switch {
		case branch == "" || own:
			problem := fmt.Sprintf("A compute runs for %s, which does not exist.", u.EndpointID)
			if own {
				problem = fmt.Sprintf("A compute that was started for work on branch %s still runs.", b.ID)
			}
			out = append(out, Finding{Kind: DriftUnknownCompute, Subject: u.EndpointID, Problem: problem, Will: "stop it",
				Repair: l.fix(func(ctx context.Context, s *Service) error { return s.stopUnknown(ctx, u) })})
			continue
		case !handles[u.EndpointID]:
			out = append(out, Finding{Kind: DriftMissingHandle, Subject: u.EndpointID,
				Problem: fmt.Sprintf("The compute of endpoint %s runs without a record in the control database: a restarted server would not know it.", u.EndpointID),
				Will:    "record it again", Repair: l.fix(func(ctx context.Context, s *Service) error { return s.recordHandle(ctx, u.EndpointID, branch) })})
		}
		if socket := filepath.Join(u.Ready.SocketDir, postgres.SocketName); missing(socket) {
			out = append(out, Finding{Kind: DriftSocket, Subject: u.EndpointID,
				Problem: fmt.Sprintf("The socket of endpoint %s, %s, was removed: nobody can connect any more.", u.EndpointID, socket),
				Will:    "restart the compute", Repair: l.fix(func(ctx context.Context, s *Service) error {
					return s.bounce(ctx, u.EndpointID, "its socket was removed")
				})})
		}
	}
	for _, e := range l.inv.Endpoints {
		if l.busy[e.BranchID] || l.branches[e.BranchID].Deleting || !l.ours(e.ID) {
			continue
		}
		settle := l.fix(func(ctx context.Context, s *Service) error { return s.settleEndpoint(ctx, e.ID) })
		switch runs := up[e.ID]; {
		case e.Deleting:
			out = append(out, Finding{Kind: DriftPending, Subject: e.ID, Repair: settle, Will: "go on",
				Problem: fmt.Sprintf("Endpoint %s is being deleted, and no operation goes on with it.", e.ID)})
		case !runs && e.State == core.EndpointActive && e.Pending == "":
			out = append(out, Finding{Kind: DriftLostCompute, Subject: e.ID, Repair: settle, Will: "start it again, or mark it as asleep if it may sleep",
				Problem: fmt.Sprintf("Endpoint %s is recorded as active, and no compute of it runs.", e.ID)})
		case e.Pending != "":
			out = append(out, Finding{Kind: DriftEndpointState, Subject: e.ID, Repair: settle, Will: "record what is",
				Problem: fmt.Sprintf("Endpoint %s is recorded as becoming %s, and no operation works on that.", e.ID, e.Pending)})
		case runs && e.State != core.EndpointActive:
			out = append(out, Finding{Kind: DriftEndpointState, Subject: e.ID, Repair: settle, Will: "record what is",
				Problem: fmt.Sprintf("Endpoint %s is recorded as %s, and its compute runs.", e.ID, e.State)})
		case runs && e.Disabled:
			out = append(out, Finding{Kind: DriftEndpointState, Subject: e.ID, Repair: settle, Will: "suspend it",
				Problem: fmt.Sprintf("Endpoint %s is disabled, and its compute runs.", e.ID)})
		}
	}
	return out
}

// checkResting compares without a server: computes run on without one, and the next start takes them over by their handles.
func (l *look) checkResting() []Finding {
	var out []Finding
	recorded := map[int]bool{}
	for _, h := range l.inv.Handles {
		var handle compute.Handle
		if json.Unmarshal(h.Handle, &handle) == nil {
			recorded[handle.PID] = true
		}
	}
	for _, p := range l.procs {
		if !recorded[p.PID] {
			out = append(out, Finding{Kind: DriftStray, Subject: strconv.Itoa(p.PID) + " in " + filepath.Base(p.DataDir), Will: "end it",
				Problem: fmt.Sprintf("A PostgreSQL server (pid %d) runs on the volume %s, and the control database does not know it.", p.PID, p.DataDir)})
		}
	}
	return out
}
