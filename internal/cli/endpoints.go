package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

func (a *app) endpointsCmd() *cobra.Command {
	return group("endpoints", "List, create, change, start and suspend computes",
		"An endpoint is the address of a compute that sleeps when unused. It is named by id, or by its branch.",
		[]string{"endpoint", "computes", "compute"},
		a.endpointsList(), a.endpointsGet(), a.endpointsCreate(), a.endpointsUpdate(), a.endpointsDelete(),
		a.endpointsRun("start", "Wake a compute", (*sdk.Client).StartEndpoint),
		a.endpointsRun("suspend", "Put a compute to sleep and cut its connections", (*sdk.Client).SuspendEndpoint),
		a.endpointsRun("restart", "Stop and start a compute", (*sdk.Client).RestartEndpoint))
}

func units(e *sdk.Endpoint) string {
	if e.AutoscalingLimitMinCU == e.AutoscalingLimitMaxCU {
		return number(e.AutoscalingLimitMinCU)
	}
	return number(e.AutoscalingLimitMinCU) + "-" + number(e.AutoscalingLimitMaxCU)
}

func endpointState(e *sdk.Endpoint) string {
	s := string(e.CurrentState)
	if p := deref(e.PendingState); p != "" && p != e.CurrentState {
		s += " → " + string(p)
	}
	if e.Disabled {
		s += ", disabled"
	}
	return s
}

func suspendTimeout(s int64) string {
	switch s {
	case -1:
		return "never"
	case 0:
		return "5m (default)"
	}
	return duration(s)
}

func (a *app) endpointFields(e *sdk.Endpoint) fields {
	var f fields
	f.add("Id", e.ID)
	f.add("Name", deref(e.Name))
	f.add("Branch", e.BranchID)
	f.add("Type", string(e.Type))
	f.add("State", endpointState(e))
	f.add("Host", e.Host)
	f.add("Compute units", units(e))
	if r := e.Runtime; r != nil {
		if r.SizeCU != nil {
			f.add("Size now", number(*r.SizeCU)+" CU")
		}
		if note := deref(r.SizeNote); note != "" {
			f.add("Note", note)
		}
		if r.ReplicationLagBytes != nil {
			lag := fmt.Sprintf("%d bytes", *r.ReplicationLagBytes)
			if r.ReplicationLagMs != nil {
				lag += fmt.Sprintf(", %d ms", *r.ReplicationLagMs)
			}
			f.add("Behind primary", lag)
		}
	}
	if s := e.Settings.PgSettings; s != nil {
		for _, name := range slices.Sorted(maps.Keys(*s)) {
			f.add("Setting", name+" = "+(*s)[name])
		}
	}
	f.add("Sleeps after", suspendTimeout(e.SuspendTimeoutSeconds))
	if e.LastActive != nil {
		f.add("Last active", a.when(*e.LastActive))
	}
	f.add("Created", a.when(e.CreatedAt))
	return f
}

func (a *app) endpointsList() *cobra.Command {
	var branch string
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List the endpoints of a project, or of one branch",
		Example: "  bough endpoints list\n  bough endpoints list --branch main -o json"}
	c.Flags().StringVar(&branch, "branch", "", "only of this branch, by name or id")
	return a.verb(a.projectFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, projectID, err := a.project(ctx)
		if err != nil {
			return err
		}
		branches, err := sdk.All(cl.Branches(ctx, projectID, sdk.BranchFilter{}))
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, b := range branches {
			names[b.ID] = b.Name
		}
		var all []sdk.Endpoint
		if branch == "" {
			all, err = cl.Endpoints(ctx, projectID)
		} else {
			var b *sdk.Branch
			if b, err = a.branch(ctx, cl, projectID, branch); err == nil {
				all, err = cl.BranchEndpoints(ctx, projectID, b.ID)
			}
		}
		if err != nil {
			return err
		}
		t := &table{header: []string{"ID", "BRANCH", "TYPE", "STATE", "CU", "SLEEPS AFTER", "LAST ACTIVE"}, empty: "No endpoints."}
		for _, e := range all {
			branch := names[e.BranchID]
			if branch == "" {
				branch = e.BranchID
			}
			t.add(e.ID, branch, string(e.Type), endpointState(&e), units(&e), suspendTimeout(e.SuspendTimeoutSeconds), a.agoOpt(e.LastActive))
		}
		return a.printTable(all, t)
	})
}

func (a *app) endpointsGet() *cobra.Command {
	c := &cobra.Command{Use: "get <endpoint or branch> [flags]", Aliases: []string{"show"}, Short: "Show one endpoint",
		Example: "  bough endpoints get ep-ivory-harbor-gzjq3fbi\n  bough endpoints get main -o json"}
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, e, err := a.oneEndpoint(ctx, args[0])
		if err != nil {
			return err
		}
		if e, err = cl.Endpoint(ctx, e.ProjectID, e.ID); err != nil { // how it is doing comes with one only
			return err
		}
		return a.printFields(e, a.endpointFields(e))
	})
}

func (a *app) oneEndpoint(ctx context.Context, want string) (*sdk.Client, *sdk.Endpoint, error) {
	if want == "" {
		return nil, nil, usagef("the name of the endpoint is empty")
	}
	cl, projectID, err := a.project(ctx)
	if err != nil {
		return nil, nil, err
	}
	e, err := a.endpoint(ctx, cl, projectID, want)
	return cl, e, err
}

func (a *app) endpointsCreate() *cobra.Command {
	var branch, name, kind string
	var compute computeFlags
	c := &cobra.Command{Use: "create [flags]", Short: "Add a compute to a branch and start it",
		Example: "  bough endpoints create --branch try-index\n  bough endpoints create --branch try-index --cu 0.25-2 --suspend-timeout never"}
	c.Flags().StringVar(&branch, "branch", "", "branch, by name or id (default: the default branch)")
	c.Flags().StringVar(&name, "name", "", "name")
	c.Flags().StringVar(&kind, "type", string(api.ReadWrite), "read_write or read_only")
	compute.add(c)
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if !api.EndpointType(kind).Valid() {
			return usagef("--type is read_write or read_only, not %q", kind)
		}
		low, high, suspend, err := compute.parse()
		if err != nil {
			return err
		}
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		out, err := cl.CreateEndpoint(ctx, b.ProjectID, sdk.EndpointCreate{BranchID: b.ID, Type: api.EndpointType(kind), Name: opt(name),
			AutoscalingLimitMinCU: low, AutoscalingLimitMaxCU: high, SuspendTimeoutSeconds: suspend})
		if err != nil {
			return err
		}
		return a.endpointDone(ctx, cl, out)
	})
}

// endpointDone waits for the operations of an endpoint and shows how it is afterwards.
func (a *app) endpointDone(ctx context.Context, cl *sdk.Client, out *sdk.EndpointOperations) error {
	var err error
	if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
		return err
	}
	one := []sdk.Endpoint{out.Endpoint}
	if err := a.refresh(ctx, cl, nil, one); err != nil {
		return err
	}
	out.Endpoint = one[0]
	return a.printFields(out, a.endpointFields(&out.Endpoint))
}

// changedSettings puts NAME=VALUE pairs over an endpoint's settings, whose names do not depend on case.
func changedSettings(now *map[string]string, set []string) (map[string]string, error) {
	settings := map[string]string{}
	if now != nil {
		maps.Copy(settings, *now)
	}
	for _, pair := range set {
		name, value, ok := strings.Cut(pair, "=")
		if name = strings.TrimSpace(name); name == "" || !ok {
			return nil, usagef("--set takes NAME=VALUE, such as work_mem=64MB, not %q", pair)
		}
		maps.DeleteFunc(settings, func(other, _ string) bool { return strings.EqualFold(other, name) })
		if value != "" {
			settings[name] = value
		}
	}
	return settings, nil
}

func (a *app) endpointsUpdate() *cobra.Command {
	var name string
	var disabled bool
	var set []string
	var compute computeFlags
	c := &cobra.Command{Use: "update <endpoint or branch> [flags]", Short: "Resize, rename, configure or disable a compute",
		Example: "  bough endpoints update main --cu 1-2 --suspend-timeout 10m\n  bough endpoints update main --set work_mem=64MB --set jit=\n" +
			"  bough endpoints update ep-ivory-harbor-gzjq3fbi --disabled"}
	c.Flags().StringArrayVar(&set, "set", nil, "PostgreSQL setting, as NAME=VALUE; NAME= goes back to the default (repeatable)")
	c.Flags().StringVar(&name, "name", "", "new name")
	c.Flags().BoolVar(&disabled, "disabled", false, "refuse connections; --disabled=false accepts them again")
	compute.add(c)
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		low, high, suspend, err := compute.parse()
		if err != nil {
			return err
		}
		u := sdk.EndpointUpdate{Name: opt(name), AutoscalingLimitMinCU: low, AutoscalingLimitMaxCU: high, SuspendTimeoutSeconds: suspend}
		if c.Flags().Changed("disabled") {
			u.Disabled = &disabled
		}
		if u == (sdk.EndpointUpdate{}) && len(set) == 0 {
			return usagef("nothing to change: give --cu, --suspend-timeout, --set, --name or --disabled")
		}
		cl, e, err := a.oneEndpoint(ctx, args[0])
		if err != nil {
			return err
		}
		if len(set) > 0 {
			settings, err := changedSettings(e.Settings.PgSettings, set)
			if err != nil {
				return err
			}
			u.Settings = &sdk.EndpointSettings{PgSettings: &settings}
		}
		out, err := cl.UpdateEndpoint(ctx, e.ProjectID, e.ID, u)
		if err != nil {
			return err
		}
		return a.endpointDone(ctx, cl, out)
	})
}

func (a *app) endpointsDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete <endpoint or branch> [flags]", Aliases: []string{"rm"}, Short: "Remove a compute and cut its connections; the branch stays",
		Example: "  bough endpoints delete ep-ivory-harbor-gzjq3fbi"}
	return a.verb(a.yesFlag(a.waitFlag(a.projectFlag(c))), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, e, err := a.oneEndpoint(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm("Delete endpoint %s of branch %s? Its address stops working.", e.ID, e.BranchID); err != nil {
			return err
		}
		out, err := cl.DeleteEndpoint(ctx, e.ProjectID, e.ID)
		if err != nil {
			return err
		}
		if out.Endpoint.ID == "" { // gone in the meantime
			out.Endpoint, out.Operations = *e, []sdk.Operation{}
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.deleted(out, "endpoint "+e.ID)
	})
}

func (a *app) endpointsRun(verb, short string,
	call func(*sdk.Client, context.Context, string, string) (*sdk.EndpointOperations, error)) *cobra.Command {
	c := &cobra.Command{Use: verb + " <endpoint or branch> [flags]", Short: short,
		Example: "  bough endpoints " + verb + " main\n  bough endpoints " + verb + " ep-ivory-harbor-gzjq3fbi --no-wait"}
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, e, err := a.oneEndpoint(ctx, args[0])
		if err != nil {
			return err
		}
		out, err := call(cl, ctx, e.ProjectID, e.ID)
		if err != nil {
			return err
		}
		return a.endpointDone(ctx, cl, out)
	})
}
