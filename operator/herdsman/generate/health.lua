-- The health of a Herdsman resource, from its conditions; Argo CD runs it with the resource in `obj`.
-- What cannot go on without a human is Degraded; what waits for another resource is Progressing.

local function answer(status, message)
  return {status = status, message = message}
end

local metadata = obj.metadata or {}
if metadata.deletionTimestamp ~= nil then
  return answer("Progressing", "It is being deleted.")
end

local status = obj.status
if type(status) ~= "table" or type(status.conditions) ~= "table" or #status.conditions == 0 then
  return answer("Progressing", "The operator has not looked at it yet.")
end
if metadata.generation ~= nil and (status.observedGeneration or 0) < metadata.generation then
  return answer("Progressing", "The operator has not looked at its last change yet.")
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function is(kind, value)
  return conditions[kind] ~= nil and conditions[kind].status == value
end

local function said(kind)
  return conditions[kind] ~= nil and conditions[kind].message or ""
end

local function cause(kind)
  local failure = status.failure
  if type(failure) ~= "table" or (failure.message or "") == "" then
    return said(kind)
  end
  if (failure.hint or "") == "" then
    return failure.message
  end
  return failure.message .. " " .. failure.hint
end

-- The ends of a run.
if is("Complete", "True") then
  return answer("Healthy", said("Complete"))
end
if is("Failed", "True") then
  return answer("Degraded", cause("Failed"))
end

-- Refused: only a change of a manifest helps. What runs already is not touched by it, but the change did not take.
if is("Accepted", "False") then
  return answer("Degraded", cause("Accepted"))
end
local inputs = conditions["DependenciesReady"]
local progressing = conditions["Progressing"] or {}
-- A server without replicas holds the requests that come, and so serves.
local serves = is("Ready", "True") and (progressing.reason == "Ready" or progressing.reason == "ScaledToZero")
if inputs ~= nil and inputs.status == "False" then
  if inputs.reason == "ArtifactMismatch" then
    return answer("Degraded", cause("DependenciesReady"))
  end
  if inputs.reason == "ReferenceFailed" and not is("Progressing", "True") and not serves then
    return answer("Degraded", inputs.message)
  end
end

if is("Suspended", "True") then
  return answer("Suspended", said("Suspended"))
end

if progressing.reason == "Suspended" then
  return answer("Suspended", progressing.message)
end
if serves then
  return answer("Healthy", said("Ready"))
end
if progressing.reason == "ScaledToZero" then
  return answer("Degraded", said("Ready"))
end

-- Not started yet: say what for.
if inputs ~= nil and inputs.status == "False" and progressing.status ~= "True" and not is("Ready", "True") then
  return answer("Progressing", inputs.message)
end
-- A server of which a replica is in trouble, and a run that cannot start: it may pass by itself, but somebody should
-- look. Waiting for nodes or for a turn is no fault.
local patient = {Queued = true, Unschedulable = true, QuotaExceeded = true, Pending = true, Restarting = true}
if progressing.status == "False" and not patient[progressing.reason or "Pending"] then
  return answer("Degraded", cause("Progressing"))
end
local percent = type(status.progress) == "table" and status.progress.percent or nil
if percent ~= nil and progressing.reason == "Running" then
  return answer("Progressing", string.format("%d %% done. %s", percent, said("Progressing")))
end
return answer("Progressing", said("Progressing"))
